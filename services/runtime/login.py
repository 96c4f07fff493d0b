"""Who runs this process, as the system knows them: the name under which commands are audited."""

import os
import pwd


def login() -> str:
    """The account's name, `uid-NUMBER` for one without (a container's).

    `getpass.getuser` believes LOGNAME and USER: whoever sets them could decide on orders of their own under another name.
    """
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid-{number}"
