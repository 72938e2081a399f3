"""``moesaic export``: a checkpoint as one GGUF file, for llama.cpp."""

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; a new file.")],
    form: Annotated[
        str, typer.Option(help="What weights are stored in: f32, f16, bf16, q8_0 or q4_0.")
    ] = "bf16",
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="llama.cpp's name for how the tokenizer cuts text; found out if left out.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a checkpoint as a GGUF file, which llama.cpp and what is built on it run.

    q8_0 and q4_0 are integers with a scale for every 32 weights of a row; with q4_0 the embedding,
    the head and kv_b_proj have 8 bits. Norms and routers stay in float32. Other forms, as Q4_K_M,
    are made of a bf16 file by llama-quantize of llama.cpp.

    The tokenizer goes along, with its chat template. llama.cpp cuts text by rules of its own that
    have names: deepseek-llm, deepseek-coder and deepseek-v3 are found out, and those trained here
    are deepseek-v3. A folder without tokenizer.json becomes a file that takes token ids.

    Left out are the prediction modules, which llama.cpp does not run for DeepSeek models. A model
    that it cannot compute is refused, and what it computes otherwise is printed. One stack of
    experts is in memory at a time.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from moesaic.checkpoint.load import Reader
    from moesaic.data.tokenizer import TOKENIZER_FILE, Tokenizer
    from moesaic.errors import ConfigError, suggest
    from moesaic.units import gb

    try:
        from moesaic.checkpoint.gguf import FORMS, write_gguf
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"export needs {error.name}; install it with: pip install 'moesaic[gguf]'"
        ) from None
    chosen = FORMS.get(form)
    if chosen is None:
        raise ConfigError(f"--form {form} is not one of {', '.join(FORMS)}{suggest(form, FORMS)}")
    source = Reader(folder)
    tokenizer = Tokenizer.load(folder) if (folder / TOKENIZER_FILE).is_file() else None
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("exporting", total=source.report.parameters)
        written = write_gguf(
            source, out, chosen, tokenizer, pre_tokenizer, lambda n: bar.advance(task, n)
        )
    if as_json:
        print(json.dumps({"kind": "export", "form": form, **asdict(written), "path": str(out)}))
        return
    text = f"text cut as {written.pre_tokenizer}" if written.pre_tokenizer else "token ids only"
    print(
        f"{out} | {written.architecture} | {form} | {written.tensors} tensors | "
        f"{gb(written.n_bytes)} | {text}"
    )
    for note in written.notes:
        print(f"note: {note}")
