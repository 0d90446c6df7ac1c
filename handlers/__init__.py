"""The example: what happens when a user was created. Each module holds one group's handlers."""
