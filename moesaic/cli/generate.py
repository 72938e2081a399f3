"""``moesaic generate``: text from a prompt, as it is written."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli.visible import visible
from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError

if TYPE_CHECKING:
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.model.transformer import Transformer

_DEFAULTS = GenerateConfig()


def generate(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    prompt: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text to go on from; - reads it.")
    ],
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens to draw.")
    ] = _DEFAULTS.max_new_tokens,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 the model's own distribution.")
    ] = _DEFAULTS.temperature,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens of this probability together.")
    ] = _DEFAULTS.top_p,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = _DEFAULTS.seed,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    form: Annotated[
        str, typer.Option(help="int8 or int4 hold the weights in fewer bits; on a CPU.")
    ] = "weights",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Most memory of the weights, as 8GiB; further experts are read when chosen.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
) -> None:
    """Continue a text; only what is new is printed. Ctrl-C stops.

    With --memory a model runs that is larger than the memory: what every token needs is held, and
    beside it the experts that are used most. A line on the standard error tells how that went.
    """
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.infer.held import cache_of
    from moesaic.infer.load import form_of, load_held
    from moesaic.units import parse_bytes

    config = GenerateConfig.parse(
        dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    )
    text = _read_prompt() if prompt == "-" else prompt
    tokenizer = Tokenizer.load(folder)
    model = load_held(folder, dtype, device, form_of(form), parse_bytes(memory) if memory else None)
    show = _print_json if as_json else _print_text
    show(model, text, tokenizer, config.model_dump())
    cache = cache_of(model)
    if cache is not None and not as_json:
        print(cache.told(), file=sys.stderr)


def _read_prompt() -> str:
    """Standard input without the newline that ends it."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the prompt on standard input is not UTF-8 ({error}); convert it first"
        ) from None


def _print_text(
    model: "Transformer", prompt: str, tokenizer: "Tokenizer", settings: dict[str, Any]
) -> None:
    from moesaic.infer.generate import stream

    pieces = stream(model, prompt, tokenizer, **settings)
    try:
        for piece in pieces:
            print(visible(piece.text), end="", flush=True)
    finally:
        print()


def _print_json(
    model: "Transformer", prompt: str, tokenizer: "Tokenizer", settings: dict[str, Any]
) -> None:
    from moesaic.infer.generate import generate
    from moesaic.infer.held import cache_of

    [continuation] = generate(model, prompt, tokenizer, **settings)
    told = {name: value for name, value in asdict(continuation).items() if value is not None}
    cache = cache_of(model)
    if cache is not None:
        told["experts"] = cache.figures()
    print(json.dumps({"prompt": prompt, **told}, ensure_ascii=False))
