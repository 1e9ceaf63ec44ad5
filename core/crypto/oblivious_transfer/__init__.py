"""Oblivious transfer: the requester learns one of two labels per bit, the pool does not learn which.

128 base transfers on a curve (``base``), spread to 64 punctured seeds (``puncture``), extended with AES and a
consistency check to as many transfers as wanted (``extension``). The set-up needs no choices: run it early.

::

    sender (pool)                                  receiver (requester)
    request()            -- SetupRequest  -->      setup(request)
    finish(reply)        <-- SetupReply   --                              <- off the critical path
    send(choices, pairs) <-- Choices      --       choose(bits)
                         -- Ciphertexts   -->      receive(ciphertexts)   -> one label per bit
"""

from core.crypto.oblivious_transfer.extension import ExtensionReceiver, ExtensionSender
from core.crypto.oblivious_transfer.messages import (
    MAX_TRANSFERS,
    SESSION_SIZE,
    Choices,
    Ciphertexts,
    SetupReply,
    SetupRequest,
)

__all__ = [
    "MAX_TRANSFERS", "SESSION_SIZE", "Choices", "Ciphertexts", "ExtensionReceiver", "ExtensionSender", "SetupReply",
    "SetupRequest",
]  # fmt: skip
