"""What `supervisor` offers to the modules of users."""

import subprocess
import sys

import supervisor
from supervisor import errors, messages


def test_all_public_names_are_listed_and_there() -> None:
    # In a process of its own: here other tests have looked some up already.
    program = "import supervisor, sys; print(*dir(supervisor)); assert 'redis' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"handler", "Publisher", "Message", "Retry", "context"} <= set(supervisor.__all__) <= set(listed)
    for name in supervisor.__all__:
        assert getattr(supervisor, name) is not None


def test_every_error_of_a_handler_or_producer_is_public() -> None:
    """The others belong to the command line."""
    kinds = [value for module in (errors, messages) for value in vars(module).values() if isinstance(value, type)]
    names = {kind.__name__ for kind in kinds if issubclass(kind, errors.SupervisorError)}
    of_commands = {"AlreadyRunningError", "AnswerLostError", "NotRunningError", "OtherUserError"}
    assert names - of_commands <= set(supervisor.__all__)


def test_from_import_star_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from supervisor import *", names)
    assert set(supervisor.__all__) <= set(names)
