"""Errors that a person caused and a person can mend."""


class UserError(Exception):
    """One sentence that says what is wrong and names the cure; shown without a traceback."""


class DiskFull(UserError):
    """Nothing is wrong with what was asked."""
