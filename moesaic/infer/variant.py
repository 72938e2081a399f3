"""`Variant`: a model with other weights in some places, that some of the requests are for."""

from collections.abc import Callable
from threading import Lock

from moesaic.errors import RequestError
from moesaic.infer.decoder import Decoder


class Variant:
    """Weights of their own, which stay until the last request for them has ended.

    Two variants never share a pass through the model, nor what is cached of a prompt.
    """

    def __init__(self, root: bytes, decoder: Decoder, give_back: Callable[[], object]) -> None:
        """Take what was made for it.

        Args:
            root: what tells its cached prompts from those of others: different weights, different
                bytes.
            decoder: feeds the model; its pool is the engine's.
            give_back: called once, when nobody needs the weights any more.
        """
        self.root, self.decoder = root, decoder
        self._give_back = give_back
        self._requests, self._closed = 0, False
        self._lock = Lock()

    @property
    def requests(self) -> int:
        """How many are running or waiting."""
        return self._requests

    def enter(self) -> None:
        """Begin a request.

        Raises:
            RequestError: if the weights are no longer served.
        """
        with self._lock:
            if self._closed:
                raise RequestError(
                    "the shard was unloaded before the request began; load it again, or ask for "
                    "another model"
                )
            self._requests += 1

    def leave(self) -> None:
        """End a request."""
        with self._lock:
            self._requests -= 1
            is_last = self._closed and not self._requests
        if is_last:
            self._give_back()

    def close(self) -> None:
        """Let no further request begin; those that did may end."""
        with self._lock:
            is_last = not (self._closed or self._requests)
            self._closed = True
        if is_last:
            self._give_back()
