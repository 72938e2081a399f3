"""``moesaic generate``: text from a prompt, as it is written."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli.visible import visible
from moesaic.config.infer import GenerateConfig, TextConfig
from moesaic.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.infer.grammar import Grammar
    from moesaic.model.transformer import Transformer

_DEFAULTS = TextConfig()


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
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = _DEFAULTS.seed,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write JSON that this JSON schema describes."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Most memory of the weights, as 8GiB; further experts are read when chosen.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Write otherwise, as top_k=40.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
) -> None:
    """Continue a text; only what is new is printed. Ctrl-C stops.

    With --schema what is written is JSON of that form, whatever the model would say: tokens
    that cannot follow are never drawn. Say in TEXT what is wanted, and leave room with
    --max-new-tokens; a text that is cut there is told of. In the same way --set takes
    regex='[0-9]{4}', choice='["yes", "no"]', or grammar=FILE (of Lark, or the GBNF of
    llama.cpp). This needs pip install 'moesaic[serve]'.

    With --memory a model runs that is larger than the memory: what every token needs is held, and
    beside it the experts that are used most. A line on the standard error tells how that went.

    Further settings of --set: top_p, top_k, stop (texts before which to stop), dtype (float32,
    bfloat16 or float16), device (cpu, cuda, …), form (on a CPU; lossless: the same bfloat16
    weights in 12 bits each; int8 or int4: rounded to fewer), and speculate (always or auto: the
    model's prediction module drafts tokens, always or as long as that is measured to be faster).
    """
    from moesaic.config.load import parse_changes
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.infer.held import cache_of
    from moesaic.infer.load import load_held
    from moesaic.kernels.allocator import keep_freed_memory
    from moesaic.model.build import torch_device

    given = [f"max_new_tokens={max_new_tokens}", f"temperature={temperature}", f"seed={seed}"]
    given += [] if memory is None else [f"memory={memory}"]
    config = parse_changes(TextConfig, [*given, *(changes or [])])
    text = _read_prompt() if prompt == "-" else prompt
    tokenizer = Tokenizer.load(folder)
    grammar = _grammar(folder, tokenizer, schema, config)
    device = torch_device(config.device)
    if config.memory is None and device.type == "cpu":
        keep_freed_memory()
    model = load_held(folder, config.dtype, device, config.form, config.memory)
    drawn = config.model_dump(include=set(GenerateConfig.model_fields))
    show = _print_json if as_json else _print_text
    further = {"structured_outputs": grammar, "speculate": config.speculate}
    show(model, text, tokenizer, {**drawn, **further})
    cache = cache_of(model)
    if cache is not None and not as_json:
        print(cache.told(), file=sys.stderr)


def _grammar(
    folder: str, tokenizer: "Tokenizer", schema: Path | None, config: TextConfig
) -> "Grammar | None":
    """What the text has to be, if that was asked for."""
    from moesaic.config.published import read_config
    from moesaic.infer.grammar import Grammars
    from moesaic.infer.structured import structured_grammar

    asked = {
        "json": None if schema is None else _read(schema, "--schema"),
        "regex": config.regex,
        "choice": None if config.choice is None else list(config.choice),
        "grammar": config.grammar and _read(Path(config.grammar), "grammar="),
    }
    asked = {kind: value for kind, value in asked.items() if value is not None}
    if len(asked) > 1:
        names = [{"json": "--schema"}.get(kind, kind) for kind in asked]
        raise ConfigError(f"{' and '.join(names)} both ask for a form; give one")
    if not asked:
        return None
    return structured_grammar(asked, lambda: Grammars(read_config(folder), tokenizer))


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option} {path} cannot be read ({error}); give a text file in UTF-8"
        ) from None


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

    pieces, ending = stream(model, prompt, tokenizer, **settings), None
    try:
        for piece in pieces:
            print(visible(piece.text), end="", flush=True)
            ending = piece.ending
    finally:
        print()
    if ending == "length" and settings["structured_outputs"] is not None:
        print(
            "moesaic: the text was cut, and is only the beginning of what was asked for; raise "
            "--max-new-tokens",
            file=sys.stderr,
        )


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
