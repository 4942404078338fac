"""Every exception that asyncrl raises on purpose, as one tree.

    AsyncrlError
    ├── UserError              bad input: shown as one message, exit code 2
    │   ├── ConfigError        names the key
    │   │   └── CompleteError  a run that was to go on has all its steps
    │   └── DataError          names the file, and the line or column
    └── RunError               a run that could not go on: exit code 1
        ├── DeadlineError      names what was waited for, how long, and who should have come
        ├── RoleDiedError      names the role and shows its last log lines
        ├── FinalError         what a restart would only meet again: a limit, a full disk
        ├── WireError          a message that does not fit the schema
        ├── RunStopping        the run was told to stop while a role waited
        ├── PublishError       new weights did not reach every generator whole
        │   └── NotWholeError  … but every generator answered: a second try may mend it
        ├── StalenessError     the staleness bound was broken; carries every number
        └── SelftestError      a check of `asyncrl selftest` found something wrong

Our own mistakes are asserts; they are not in this tree.
"""

from __future__ import annotations


class AsyncrlError(Exception):
    """Base of all errors raised on purpose."""


class UserError(AsyncrlError):
    """Bad input. The message names the key, file or line and says how to mend it."""


class ConfigError(UserError):
    """A configuration key that is unknown, of the wrong type, or impossible beside another."""


class CompleteError(ConfigError):
    """A run that was to go on has all its steps."""


class DataError(UserError):
    """A data set or model folder that cannot be used; names the file and the line or column."""


class RunError(AsyncrlError):
    """A run that could not go on."""


class DeadlineError(RunError):
    """A wait that ended at its deadline."""

    def __init__(self, waited_for: str, seconds: float, who: str) -> None:
        super().__init__(waited_for, seconds, who)  # as they are: it is pickled on its way to the launcher

    def __str__(self) -> str:
        waited_for, seconds, who = self.args
        return f"waited {seconds:.0f} s for {waited_for}; {who} should have come and did not"


class RoleDiedError(RunError):
    """A role's process ended when it should not have."""


class FinalError(RunError):
    """What a restart would only meet again: a limit that was reached, a disk that is full."""


class WireError(RunError):
    """A message from the network that does not fit its schema or its size limit. It was not used."""


class RunStopping(RunError):
    """The run was told to stop while this role waited; not a failure."""


class PublishError(RunError):
    """New weights did not reach every generator whole, so none may serve them."""


class NotWholeError(PublishError):
    """Weights arrived, or are held, other than they were sent. All generators answer, so they can be sent again."""


class StalenessError(RunError):
    """The staleness bound was broken."""


class SelftestError(RunError):
    """A check of `asyncrl selftest` found something wrong; the message has the figures."""
