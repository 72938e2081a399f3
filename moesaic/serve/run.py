"""`Server`: a checkpoint folder behind HTTP, until it is stopped."""

from pathlib import Path
from typing import Self

import torch
import uvicorn

from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, RequestError
from moesaic.infer.batching import BatchEngine
from moesaic.infer.blocks import BLOCK, BlockPool
from moesaic.infer.decoder import build_decoder
from moesaic.model.build import load_model, torch_dtype
from moesaic.serve.app import Served, make_app


class Server:
    """A model that answers on a port."""

    def __init__(self, served: Served, host: str, port: int) -> None:
        """Bind the port; nothing is answered before `run`.

        Raises:
            RequestError: if the port is taken.
        """
        self.served, closing_s = served, served.config.closing_s
        settings = uvicorn.Config(
            make_app(served),
            host,
            port,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=max(1, round(closing_s)),
        )
        self._server = uvicorn.Server(settings)
        try:
            self._socket = settings.bind_socket()
        except SystemExit:
            raise RequestError(
                f"port {port} of {host} cannot be had; give another with --port, or 0 for any"
            ) from None
        bound, number = self._socket.getsockname()[:2]
        self.address = f"http://{f'[{bound}]' if ':' in bound else bound}:{number}"

    @classmethod
    def load(cls, folder: Path | str, config: ServeConfig, host: str, port: int) -> Self:
        """The model of a checkpoint folder, under the folder's name.

        Raises:
            ConfigError: if the device is missing, or the cache smaller than a block.
            CheckpointError: if the folder is incomplete or damaged.
            DataError: if it has no tokenizer.
        """
        tokenizer, device = Tokenizer.load(folder), _device(config)
        model = load_model(folder, config.dtype, device).requires_grad_(False)
        n_blocks = config.cache_tokens // BLOCK
        if not n_blocks:
            raise ConfigError(
                f"cache_tokens={config.cache_tokens} is less than a block of {BLOCK}; raise it"
            )
        pool = BlockPool(model.config, n_blocks, dtype=torch_dtype(config.dtype), device=device)
        engine = BatchEngine(build_decoder(model, pool, config.form), tokenizer, config)
        name = Path(folder).resolve().name
        served = Served(name, engine, tokenizer, model.config.max_position_embeddings)
        try:
            return cls(served, host, port)
        except RequestError:
            engine.close(0)
            raise

    def run(self) -> None:
        """Answer until `stop`, or a signal; running requests may end in ``closing_s``."""
        try:
            self._server.run([self._socket])
        finally:
            self._socket.close()
            self.served.engine.close(0)

    def stop(self) -> None:
        """End `run`; any thread may."""
        self._server.should_exit = True


def _device(config: ServeConfig) -> str:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("device='cuda', but PyTorch finds no GPU; set device='cpu'")
    return "cuda" if there and config.device != "cpu" else "cpu"
