"""The name that commands are audited under is the account's, whatever the environment says."""

import os
import pwd

from services.runtime.login import login


def test_the_environment_lends_nobody_a_name(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert login() == pwd.getpwuid(os.getuid()).pw_name != "somebody-else"


def test_an_account_without_a_name_has_its_number(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1_000_620_000)
    assert login() == "uid-1000620000"
