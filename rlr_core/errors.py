"""The one exception for what a person can put right: a sentence that says what is wrong and what to do."""


class UserError(Exception):
    """Wrong input, a missing file, a setting that cannot work. The command line prints it, exit code 2."""


def one_line(error: object, most: int = 200) -> str:
    """What an error of a library says, on one line and not longer than one."""
    return " ".join(str(error).split())[:most]


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """' Did you mean X?' when something known is close to `name`, otherwise ''."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
