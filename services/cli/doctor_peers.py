"""`pofl doctor`, what lies between hosts: ports, who answers there, its chain and release, and the clock."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from typing import Final

from core.errors import AuthError, ConfigError, DeadlineError, PoflError, UnavailableError, WrongChainError
from core.ids import Height
from core.params import PROTOCOL_VERSION
from services.cli.doctor_files import Subject
from services.cli.findings import Finding
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect, dial
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.rpc.tls import identity_of
from services.runtime.config import WILDCARDS

__all__ = ["clock", "own_port", "peers"]

REACH_TIMEOUT: Final = 4.0
CLOCK_OFF_MS: Final = 5_000
"""A block arrives within a second or two of its time; this much more is a clock's fault."""


async def own_port(subject: Subject) -> list[Finding]:
    """Is the port ours to take, or, if the process runs, does it answer where others are told to look?"""
    if await asyncio.to_thread(subject.is_running):
        return [await reach(subject, "own port", subject.address, subject.role, own=True)]
    found = [finding for key, address in subject.ports if (finding := _taken(subject, key, address)) is not None]
    listen = str(subject.values["listen"])
    free = "any that is free" if listen.endswith(":0") else f"{listen} is free: the process does not run"
    return found or [Finding("ok" if listen.endswith(":0") else "note", subject.name, "own port", free)]


def _taken(subject: Subject, key: str, address: str) -> Finding | None:
    """What keeps the process from listening there."""
    check = "own port" if key == "listen" else f"own port ({key})"
    host, _, port = address.rpartition(":")
    if port == "0":
        return None
    try:
        with socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text, advice = f"{address} is taken by another process", f"stop that, or change {key}"
        else:
            text = f"cannot listen on {address}: {error.strerror or error}"
            advice = "listen on an address of this host, or on 0.0.0.0 with advertise"
        return Finding("bad", subject.name, check, text, advice)


async def peers(subject: Subject) -> list[Finding]:
    """Everyone that the process dials, a few at a time. Raises InputError if its own files cannot be used."""
    places = asyncio.Semaphore(8)

    async def one(address: str, role: str) -> Finding:
        async with places:
            return await reach(subject, f"{role} {address}", address, role)

    return list(await asyncio.gather(*(one(address, role) for address, role in subject.peers)))


async def reach(subject: Subject, check: str, address: str, role: str, *, own: bool = False) -> Finding:
    """Port, certificate, chain and release of whoever answers at ``address``, in this order."""

    def bad(text: str, advice: str) -> Finding:
        return Finding("bad", subject.name, check, text, advice)

    if address.rpartition(":")[0] in WILDCARDS:
        return bad(f"{address} is nobody's address", "write the other host's name or address")
    files = subject.tls
    if files is not None:
        try:
            pem = await asyncio.to_thread(_certificate_at, subject, address)
        except ConnectionRefusedError:
            who = "this process" if own else f"the {role}"
            return bad("the port is closed", f"start {who} there; if it runs, compare its `listen` with this address")
        except TimeoutError:
            return bad(
                f"no answer within {REACH_TIMEOUT:g} s", "open the port in firewalls between the hosts; is the address right?"
            )
        except socket.gaierror as error:
            return bad(f"the name is unknown here ({error.strerror})", "correct the address, or this host's name service")
        except ssl.SSLCertVerificationError as error:
            if "expired" in error.verify_message or "not yet valid" in error.verify_message:
                return bad(f"its certificate: {error.verify_message}", "compare this host's clock with that one's; issue anew")
            return bad(
                f"its certificate is not of this network ({error.verify_message})", "both hosts need bundles of one `init`"
            )
        except ssl.SSLError as error:
            return bad(
                f"no TLS as ours is spoken there ({error.reason})", "is it the right port? the operator's port is another"
            )
        except OSError as error:
            return bad(f"cannot be reached: {error.strerror or error}", "correct the address, or the route to that host")
        try:
            found = identity_of(pem.encode())
        except ConfigError as error:
            return bad(error.message, "is it a process of this network?")
        if found.role != role or (own and found.name != subject.name):
            wanted = f"{role} {subject.name}" if own else f"a {role}"
            return bad(
                f"there is {found.role} {found.name}, not {wanted}", "correct the address, or the certificate over there"
            )
    return await _shake_hands(subject, check, address, role)


def _certificate_at(subject: Subject, address: str) -> str:
    """The certificate, PEM, of who answers; checked against our authority, but not for a name. Raises OSError."""
    files = subject.tls
    assert files is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # ours name roles, and the caller compares that
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), REACH_TIMEOUT) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


def _identity(subject: Subject) -> LocalIdentity:
    genesis = subject.genesis
    chain = ChainIdentity(genesis.name, genesis.chain_id, PROTOCOL_VERSION)
    return LocalIdentity(subject.role, subject.name, chain, subject.key)


async def _shake_hands(subject: Subject, check: str, address: str, role: str) -> Finding:
    try:
        connection = await dial(address, subject.tls, _identity(subject), expect_role=role, timeout=REACH_TIMEOUT)
    except WrongChainError as error:
        if "protocol version" in error.message:
            return Finding("bad", subject.name, check, error.message, "install the same release of pofl on both hosts")
        return Finding("bad", subject.name, check, error.message, "find out whose genesis.json is right, and copy that")
    except (UnavailableError, DeadlineError) as error:
        return Finding("bad", subject.name, check, error.message, "the port answers, the process does not: look at its log")
    except AuthError as error:
        return Finding(
            "bad", subject.name, check, error.message, "certificate and key over there, or here, do not belong together"
        )
    except PoflError as error:
        return Finding("bad", subject.name, check, error.message, "compare the releases of pofl on both hosts")
    await connection.close()
    return Finding("ok", subject.name, check, f"{connection.remote} answers, same chain and release")


async def clock(subject: Subject, seconds: float) -> list[Finding]:
    """This host's clock against the time of the next block, which is the median of the validators' clocks."""
    nodes = [(a, role) for a, role in subject.peers if role == "node"]
    if subject.role == "node":
        nodes.append((subject.address, "node"))
    name = f"{subject.name}'s host"
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for address, role in nodes:
            try:
                channel = connect(address, subject.tls, expect_role=role, caller=_identity(subject).caller)
            except PoflError as error:
                return [_unknown(name, error.message)]
            stack.push_async_callback(channel.close, None)
            clients.append((address, channel))
        return [await _compared(name, ChainClient(clients), seconds)] if clients else [_unknown(name, "no node is known")]


async def _compared(name: str, chain: ChainClient, seconds: float) -> Finding:
    """By the block that came fastest after its time: on a busy host, or over a slow line, one alone can be late."""
    best: int | None = None
    try:
        async with asyncio.timeout(seconds):
            tip = await chain.tip()
            async for view in chain.watch_blocks(Height(tip.height + 1)):
                off = time.time_ns() // 1_000_000 - view.header.timestamp_ms
                best = off if best is None else min(best, off)
                if best <= CLOCK_OFF_MS:
                    return _judged(name, best)
    except TimeoutError:
        if best is None:
            advice = "if the chain stands still, look at the nodes (docs/operations.md)"
            return Finding("note", name, "clock", f"not compared: no new block within {seconds:g} s", advice)
    except PoflError as error:
        if best is None:
            return _unknown(name, error.message)
    return _unknown(name, "the nodes end their streams of blocks") if best is None else _judged(name, best)


def _unknown(name: str, why: str) -> Finding:
    return Finding("note", name, "clock", f"not compared: {why}")


def _judged(name: str, off_ms: int) -> Finding:
    if abs(off_ms) <= CLOCK_OFF_MS:
        return Finding("ok", name, "clock", f"{off_ms} ms after the newest block's time")
    side = "ahead of" if off_ms > 0 else "behind"
    text = f"{abs(off_ms) / 1000:.1f} s {side} the chain's time, the median of the validators' clocks"
    return Finding("bad", name, "clock", text, "set this host's clock and keep it by NTP (`timedatectl set-ntp true`)")
