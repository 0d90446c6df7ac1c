"""Being here, it makes pytest import `handlers` from this folder."""
