"""`pofl validator` and `pofl chain verify` against a node: agreeing on a change, and checking a chain over it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.chain.transaction import JoinValidator
from core.crypto.signing import KeyPair
from core.errors import BlockError, ConfigError, InputError, NotFoundError, TransactionError, UnavailableError, WrongChainError
from core.ids import Amount, Height, NodeId
from services.cli import chain as chain_commands
from services.cli import validators
from services.cli.main import main
from services.rpc import validator_watch
from services.rpc.chain_client import ChainClient
from services.rpc.validator_watch import ValidatorWatch
from tests.chainkit import FUNDS, account, key, make_genesis
from tests.light_world import World

ROOM = replace(make_genesis().params, audit_ms=12_000)


def key_file(folder: Path, name: str, pair: KeyPair | None = None) -> Path:
    path = folder / f"{name}.key"
    path.write_text((pair or key(name)).seed.hex() + "\n")
    path.chmod(0o600)
    return path


async def run(command: Any, *args: object, **kwargs: object) -> None:
    await command.__wrapped__(*args, **kwargs)


async def test_join_verify_and_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(make_genesis(4, ROOM))
    world.chain.block()
    world.follow()
    file, mine = tmp_path / "join.json", key_file(tmp_path, "pool0")
    async with world.served() as (address, _):
        there: dict[str, Any] = {"node": [address]}
        await run(validators.join, mine, 1_000_000, "10.0.0.7:9000", file, 1, **there)
        with pytest.raises(ConfigError, match="choose another file"):
            await run(validators.join, mine, 1_000_000, "10.0.0.7:9000", file, 1, **there)
        for name in ("v0", "v1"):
            await run(validators.sign, file, key_file(tmp_path, name))
        with pytest.raises(ConfigError, match="a power of 2 of 4 has signed, 2/3 are needed; not yet: v"):
            await run(validators.submit, file, mine, **there)
        await run(validators.sign, file, key_file(tmp_path, "v3"))
        await run(validators.sign, file, key_file(tmp_path, "v3"))
        await run(validators.submit, file, mine, **there)
        assert "final in block 2: in effect from height 4 on" in capsys.readouterr().out
        for _ in range(4):
            world.chain.block()
        world.follow()
        await run(validators.show, as_json=True, **there)
        shown = json.loads(capsys.readouterr().out)
        assert [v["power"] for v in shown["validators"]] == [1] * 5
        await run(chain_commands.verify, 1, None, None, None, None, **there)
        assert "blocks 1 to 6: links, roots and certificates hold" in capsys.readouterr().out
        known = world.chain.blocks[4].block_hash
        await run(chain_commands.verify, 1, None, f"5:{known.hex()}", None, None, **there)
        assert "blocks 6 to 6" in capsys.readouterr().out
        with pytest.raises(BlockError, match="is not the trusted 5"):
            await run(chain_commands.verify, 1, None, f"5:{bytes(32).hex()}", None, None, **there)
        member = account("pool0").hex()
        await run(validators.prove_account, member, f"5:{known.hex()}", **there)
        assert f"balance     {FUNDS - 1_000_001}" in capsys.readouterr().out
        out = tmp_path / "leave.json"
        await run(validators.leave, member, out, "moving house", **there)
        for name in ("v0", "v1", "v2", "v3"):
            await run(validators.sign, out, key_file(tmp_path, name))
        await run(validators.submit, out, key_file(tmp_path, "other"), **there)
        world.chain.block()
        world.follow()
        assert len(world.chain.state.validators) == 4
        with pytest.raises(ConfigError, match="is no validator"):
            await run(validators.leave, member, tmp_path / "again.json", "", **there)


async def test_what_the_chain_would_refuse_is_told_before_anybody_signs(tmp_path: Path) -> None:
    world = World(make_genesis(4, ROOM))
    world.chain.block()
    world.follow()
    out, mine, there_already = tmp_path / "x.json", key_file(tmp_path, "pool0"), key_file(tmp_path, "v0")
    poor = key_file(tmp_path, "poor")
    async with world.served() as (address, _):
        there: dict[str, Any] = {"node": [address]}
        for pair, bond, endpoint, power, sentence in (
            (mine, 100, "10.0.0.7:9000", 1, "a bond of 100; a power of 1 asks 1000000"),
            (mine, 1_000_000, "nonsense", 1, "--endpoint is 'nonsense': it must be HOST:PORT"),
            (mine, 9_000_000, "10.0.0.7:9000", 9, "a power of 9; the strongest validator has 1"),
            (poor, 1_000_000, "10.0.0.7:9000", 1, "has 0, it needs the bond of 1000000 and a fee: pay it first"),
            (there_already, 1_000_000, "10.0.0.7:9000", 1, "is a validator or has left a short time ago"),
        ):
            with pytest.raises((InputError, TransactionError), match=sentence):
                await run(validators.join, pair, bond, endpoint, out, power, **there)
        for version, height, sentence in (
            (9, 1000, "--version is 9: the chain follows version 1, the next one is 2"),
            (2, 1, "--height is 1: the last block is 1, and nodes need notice until"),
        ):
            with pytest.raises(InputError, match=sentence):
                await run(validators.upgrade, version, height, out, **there)
        assert not out.exists()
        await run(validators.upgrade, 2, 1000, out, **there)
        assert out.exists()


async def test_a_chain_without_room_says_so_at_the_first_step(tmp_path: Path) -> None:
    world = World(make_genesis(4))
    world.chain.block()
    world.follow()
    async with world.served() as (address, _):
        with pytest.raises(TransactionError, match="too short for 5 validators"):
            await run(validators.join, key_file(tmp_path, "pool0"), 1_000_000, "a:1", tmp_path / "x.json", 1, node=[address])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--last", "-3"), "'--last': -3 is "),
        (("--first", "50", "--last", "10"), "--last is 10, --first is 50: there is nothing to check"),
    ],
)
def test_a_range_that_is_empty_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setattr("sys.argv", ["pofl", "chain", "verify", *flags, "--node", "127.0.0.1:1"])
    try:
        code: object = main()
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


async def test_heights_that_are_not_there_yet_are_told_at_once() -> None:
    world = World(make_genesis(4, ROOM))
    for _ in range(3):
        world.chain.block()
    world.follow()
    known = world.chain.blocks[2].block_hash.hex()
    async with world.served() as (address, _):
        for first, last, trusted, sentence in (
            (1, 99_999_999, None, "no block at height 99999999 yet: the last block is 3"),
            (4, None, None, "no block at height 4 yet: the last block is 3"),
            (1, None, f"99999999:{known}", "no block at height 99999999 yet, which --trusted-hash names: the last block is 3"),
            (1, None, f"3:{known}", "block 3 is trusted, and 3 is the last to check: there is nothing to check"),
        ):
            with pytest.raises(InputError, match=sentence):
                await asyncio.wait_for(run(chain_commands.verify, first, last, trusted, None, None, node=[address]), 60)
        with pytest.raises(NotFoundError, match="no block at height 9 yet, which --trusted-hash names"):
            await run(validators.prove_account, account("v0").hex(), f"9:{known}", node=[address])
    with pytest.raises(NotFoundError, match="no block at height 1000000 here, the last one is 3"):
        world.light.block(Height(1_000_000))


async def test_which_chain_it_is_no_node_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, other = World(make_genesis(4, ROOM)), make_genesis(4, replace(ROOM, tick_ms=700))
    world.chain.block()
    world.follow()
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ours.write_text(world.chain.genesis.to_json())
    theirs.write_text(other.to_json())
    name = f"chain test {world.chain.genesis.chain_id.hex()[:8]}"
    known = f"1:{world.chain.blocks[0].block_hash.hex()}"
    async with world.served() as (address, _):
        there: dict[str, Any] = {"node": [address]}
        await run(chain_commands.verify, 1, None, None, None, None, genesis_file=ours, **there)
        assert capsys.readouterr().out.splitlines()[1] == name
        await run(chain_commands.verify, 1, None, None, None, None, **there)
        assert f"{name}: that it is this one is the node's word, for want of --genesis FILE" in capsys.readouterr().out
        await run(validators.prove_account, account("v0").hex(), **there)
        assert "is the node's word" in capsys.readouterr().out
        await run(validators.prove_account, account("v0").hex(), known, **there)
        assert "word" not in capsys.readouterr().out
        for command in ((chain_commands.verify, 1, None, None, None, None), (validators.prove_account, account("v0").hex())):
            with pytest.raises(WrongChainError, match=f"{address} is of {name}, the genesis document of chain test "):
                await run(*command, genesis_file=theirs, **there)
    capsys.readouterr()


async def test_a_testnets_genesis_counts_beside_a_node_of_another_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with POFL_NET set: the folder's chain is meant, whatever node is asked."""
    world, other = World(make_genesis(4, ROOM)), make_genesis(4, replace(ROOM, tick_ms=700))
    monkeypatch.setattr("services.cli.connection.load_layout", lambda folder: SimpleNamespace(genesis=other))
    async with world.served() as (address, _):
        with pytest.raises(WrongChainError, match="is of chain test"):
            await run(chain_commands.verify, 1, None, None, None, None, net=Path("net"), node=[address])


async def test_accounts_by_name_and_by_the_digits_that_tables_show(capsys: pytest.CaptureFixture[str]) -> None:
    world = World(make_genesis(4, ROOM))
    world.chain.block()
    world.follow()
    async with world.served() as (address, _):
        for text in ("pool0", account("pool0").hex()[:8], account("pool0").hex().upper()):
            await run(validators.prove_account, text, node=[address])
            assert f"account     {account('pool0').hex()}" in capsys.readouterr().out
        for text in ("nobody", "", "zz" * 32, account("pool0").hex()[:3]):
            with pytest.raises(ConfigError, match="is no account: give its 64 hex digits, or of an account in the genesis"):
                await run(validators.prove_account, text, node=[address])


async def test_what_is_read_to_people_is_not_what_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who changes a readable field of the file changes nothing; who changes the change loses the signatures."""
    world = World(make_genesis(4, ROOM))
    world.chain.block()
    world.follow()
    file = tmp_path / "join.json"
    async with world.served() as (address, _):
        await run(validators.join, key_file(tmp_path, "pool0"), 1_000_000, "10.0.0.7:9000", file, 1, node=[address])
    await run(validators.sign, file, key_file(tmp_path, "v0"))
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"bond": 5, "signed_by": []}))
    capsys.readouterr()
    await run(validators.sign, file, key_file(tmp_path, "v1"))
    printed = capsys.readouterr().out
    assert "1000000" in printed
    assert account("v0").hex() in printed
    for spoiled in (document["change"][:-2], document["change"].replace("00000000000f4240", "00000000000f4241"), "zz", ""):
        file.write_text(json.dumps(document | {"change": spoiled}))
        with pytest.raises(ConfigError, match="is no change of the validators"):
            await run(validators.sign, file, key_file(tmp_path, "v1"))
    for text, fault in (
        ("junk", "it is no JSON"),
        ("{}", "it lacks 'chain'"),
        ("[]", "it is no JSON object"),
        ('{"chain": "zz", "change": "00"}', "its chain or change are no hex digits"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"or was edited \({fault}\): get the file again from whoever wrote it"):
            await run(validators.sign, file, key_file(tmp_path, "v1"))


@pytest.mark.parametrize("text", ["5", "5:", "x:00", "0:" + "00" * 32, "5:" + "00" * 31, ":" + "00" * 32])
def test_a_trusted_hash_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="must be HEIGHT:HASH"):
        validators.parse_trusted(text)
    assert validators.parse_trusted("5:" + "ab" * 32)[0] == Height(5)


async def test_roles_that_are_no_nodes_follow_who_votes() -> None:
    world = World(make_genesis(4, ROOM))
    told: list[int] = []
    async with world.served() as (address, channel):
        client = ChainClient([(address, channel)])
        watch = ValidatorWatch(client, world.chain.genesis, lambda validators: told.append(len(validators)))
        assert len(watch.validators) == 4
        world.chain.block()
        world.follow()
        await watch.refresh()
        assert told == []
        height, nonce = world.chain.state.height, world.chain.state.account(account("pool0")).nonce
        join = JoinValidator(NodeId(account("pool0")), 1, Amount(1_000_000), "a:1", nonce, Height(height + 5), ())
        world.chain.block(world.chain.tx("pool0", world.chain.approved(join, "v0", "v1", "v2")))
        world.follow()
        await watch.refresh()
        assert told == []
        world.chain.block()
        world.follow()
        await watch.refresh()
        await watch.refresh()
        assert told == [5]
        assert {v.node_id for v in watch.validators} == {v.node_id for v in world.chain.state.validators}
        # A node that answers with another chain's blocks is not believed.
        other = World(make_genesis(4, replace(ROOM, tick_ms=700)))
        for _ in range(9):
            other.chain.block()
        other.follow()
        world.servicer._api._driver.light = other.light
        with pytest.raises(WrongChainError):
            await watch.refresh()
        assert len(watch.validators) == 5


async def test_an_outage_is_said_once_and_its_end_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(validator_watch, "POLL_SECONDS", 0)
    world, away = World(make_genesis()), UnavailableError("node0 is away")
    answers = iter([away, away, None, None, away])
    over = asyncio.Event()

    async def refresh() -> None:
        answer = next(answers, over)
        if answer is over:
            over.set()
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer

    async with world.served() as (address, channel):
        watch = ValidatorWatch(ChainClient([(address, channel)]), world.chain.genesis)
        monkeypatch.setattr(watch, "refresh", refresh)
        with caplog.at_level("INFO", "services.rpc.validator_watch"):
            running = asyncio.create_task(watch.run())
            await asyncio.wait_for(over.wait(), 60)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    said = [record.levelname for record in caplog.records if "who votes" in record.getMessage()]
    assert said == ["WARNING", "INFO", "WARNING"]
