"""What happens around every call that is served.

In this order, cheap checks first: who calls, may they, is there a deadline, are they within their limits; only then the
request is read, for a limited time, and decoded, and the method runs. Whatever it raises leaves as a status: an error of
the tree by the table of services/rpc/errors.py, anything else as INTERNAL with an identifier that is also in the log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from core.errors import AuthError, DeadlineError, MalformedError, PoflError
from services.rpc.auth import RoleRules, caller
from services.rpc.errors import to_status
from services.rpc.limits import REQUEST_MS, Limiter
from services.runtime import tracing
from services.runtime.logging import logger, scope
from services.runtime.metrics import counter, gauge, histogram

__all__ = ["Interceptor"]

log = logger(__name__)

CALLS = counter("rpc_served", "Calls served, by method and status code.", ("method", "code"))
RUNNING = gauge("rpc_running", "Calls being served now.", ("method",))
SECONDS = histogram("rpc_seconds", "Time from the start of a served call to its end.", ("method",))

# Their clients keep a stream open for as long as they look; both come from gRPC's own packages.
WITHOUT_DEADLINE = frozenset({"/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"})

DRAIN_SECONDS: Final = 2.0
"""For the request of a call that is refused, so that who is still sending it hears why."""
DRAIN_BYTES: Final = 1024 * 1024
"""Of a stream that is refused."""
MOST_DRAINS: Final = 16
"""Of one server at a time: they are no open calls, for their caller was not admitted."""

# gRPC's classes are generic for the type checker only.
if TYPE_CHECKING:
    _Base = aio.ServerInterceptor[Any, Any]
    Context = aio.ServicerContext[Any, Any]
else:
    _Base = aio.ServerInterceptor


class Interceptor(_Base):
    """Wraps every method of a server. Without ``rules`` every caller may call everything (the operator's port)."""

    def __init__(
        self,
        rules: RoleRules | None,
        limiter: Limiter | None,
        request_ms: int = REQUEST_MS,
    ) -> None:
        self._rules = rules
        self._limiter = limiter
        self._request_seconds = request_ms / 1000
        self._drains = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        # Unknown methods are answered by gRPC itself; they make no metric, or callers could make any number of them.
        return None if handler is None else self._wrap(handler_call_details.method, handler)

    def _wrap(self, method: str, handler: Any) -> Any:
        decode: Callable[[bytes], Any] = handler.request_deserializer or bytes

        async def one_to_one(requests: AsyncIterator[bytes], context: Context) -> Any:
            request = _Request(method, requests, self._request_seconds)
            async with self._guard(method, context, request):
                return await handler.unary_unary(decode(await request.read()), context)

        async def one_to_many(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            request = _Request(method, requests, self._request_seconds)
            async with self._guard(method, context, request):
                async for message in _messages(handler.unary_stream(decode(await request.read()), context)):
                    yield message

        async def many_to_one(requests: AsyncIterator[Any], context: Context) -> Any:
            async with self._guard(method, context, _Requests(requests)):
                return await handler.stream_unary(requests, context)

        async def many_to_many(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with self._guard(method, context):
                async for message in _messages(handler.stream_stream(requests, context)):
                    yield message

        # Every method is served as one whose requests are a stream: what travels is the same, and gRPC hands us the call when
        # its head is there, where for a single request it would first wait, for ever, until that is whole. A single
        # request is decoded by us, after the checks. A stream's requests are decoded by gRPC as they are
        # read, so that a method may also read them one by one from its context.
        many, one = grpc.stream_stream_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        make: Any = many if handler.response_streaming else one
        if handler.request_streaming:
            behaviour: Any = many_to_many if handler.response_streaming else many_to_one
            return make(behaviour, handler.request_deserializer, handler.response_serializer)
        return make(one_to_many if handler.response_streaming else one_to_one, None, handler.response_serializer)

    @asynccontextmanager
    async def _guard(self, method: str, context: Context, request: _Request | _Requests | None = None) -> AsyncIterator[None]:
        started = time.monotonic()
        code = StatusCode.OK.name
        # Asked now: once the other side has gone away, gRPC's answer to this is a segmentation fault.
        peer = context.peer()
        RUNNING.labels(method).inc()
        try:
            async with self._admitted(method, context):
                yield
        except PoflError as error:
            status, details, trailers = to_status(error)
            code = status.name
            log.debug("call refused", method=method, peer=peer, code=code, error=error)
            # Who has no business here gets nothing read, and gRPC no reason to let more of it come.
            if request is not None and not isinstance(error, AuthError) and self._drains < MOST_DRAINS:
                self._drains += 1
                try:
                    await request.drain()
                finally:
                    self._drains -= 1
            await _abort(context, status, details, trailers)
        except DecodeError as error:
            status, details, trailers = to_status(MalformedError(f"a request of {method} does not decode: {error}"))
            code = status.name
            await _abort(context, status, details, trailers)
        except aio.AbortError:
            code = context.code().name if isinstance(context.code(), StatusCode) else "ABORTED"
            raise
        except Exception as error:
            if context.cancelled() or context.done():
                # Writing to a caller who has gone away fails in gRPC's own ways; nobody is there to be told.
                code = StatusCode.CANCELLED.name
                log.debug("the caller went away", method=method, peer=peer, error=error)
                return
            # The boundary: a defect in one method must not end the server.
            code = StatusCode.INTERNAL.name
            incident = secrets.token_hex(4)
            log.exception("a call failed unexpectedly", method=method, peer=peer, incident=incident)
            await context.abort(StatusCode.INTERNAL, f"internal error {incident}: see the log of this process")
        except BaseException:
            code = StatusCode.CANCELLED.name
            raise
        finally:
            RUNNING.labels(method).dec()
            SECONDS.labels(method).observe(time.monotonic() - started)
            CALLS.labels(method, code).inc()

    @asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        if self._rules is None or self._limiter is None:
            yield
            return
        who = caller(context)
        self._rules.check(method, who)
        if context.time_remaining() is None and method not in WITHOUT_DEADLINE:
            raise MalformedError(f"{method} was called without a deadline: set one on every call")
        with self._limiter.enter(str(who)), scope(caller=str(who)):
            if tracing.is_on():
                with tracing.served(method, context.invocation_metadata(), str(who)):
                    yield
            else:
                yield


class _Request:
    """The one request of a call, before it is read."""

    def __init__(self, method: str, messages: AsyncIterator[bytes], seconds: float) -> None:
        self._method = method
        # gRPC makes a reader of it when it is iterated, which must then be read.
        self._messages = messages
        self._seconds = seconds
        self._is_read = False

    async def read(self) -> bytes:
        """Raises DeadlineError, MalformedError."""
        self._is_read = True
        try:
            async with asyncio.timeout(self._seconds):
                return await anext(aiter(self._messages))
        except TimeoutError:
            raise DeadlineError(
                f"the request of {self._method} did not arrive whole within {self._seconds:g} s", method=self._method
            ) from None
        except StopAsyncIteration:
            raise MalformedError(f"{self._method} was called without a request, or with one that is too large") from None

    async def drain(self) -> None:
        """Before a refusal: who is still sending would see a broken connection instead of what is wrong."""
        if not self._is_read:
            self._is_read = True
            with suppress(TimeoutError, StopAsyncIteration):
                async with asyncio.timeout(min(DRAIN_SECONDS, self._seconds)):
                    await anext(aiter(self._messages))


class _Requests:
    """The many requests of a call with one answer: who is still sending them loses the answer too."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages

    async def drain(self) -> None:
        with suppress(TimeoutError, DecodeError):
            async with asyncio.timeout(DRAIN_SECONDS):
                left = DRAIN_BYTES
                async for message in self._messages:
                    left -= message.ByteSize()
                    if left <= 0:
                        break


async def _abort(context: Context, status: StatusCode, details: str, trailers: tuple[tuple[str, str], ...]) -> None:
    """End the call with a status, unless its caller has gone away."""
    if not (context.cancelled() or context.done()):
        await context.abort(status, details, trailers)


async def _messages(replies: Any) -> AsyncIterator[Any]:
    """Replies of a streaming method, which may yield them or write them to its context."""
    if not hasattr(replies, "__aiter__"):
        await replies
        return
    try:
        async for message in replies:
            yield message
    finally:
        close = getattr(replies, "aclose", None)
        if close is not None:
            await close()
