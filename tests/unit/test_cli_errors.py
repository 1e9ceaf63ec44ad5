"""What a command says when it fails."""

from __future__ import annotations

import pytest

from core.errors import UnavailableError
from services.cli.errors import runs


def test_a_peers_words_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    @runs
    async def command() -> None:
        raise UnavailableError("node0 says: \x1b]0;mine\x07\x9b2J\u2028done\nsecond line")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert said == "error: node0 says: \\x1b]0;mine\\x07\\x9b2J\\u2028done\nsecond line\n"
