"""The command line, one command per module."""


def main() -> None:
    """Run the command line."""
