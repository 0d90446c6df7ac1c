"""The handlers of this project: every module in this folder is loaded."""
