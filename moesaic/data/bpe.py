"""Train a byte-level BPE tokenizer of DeepSeek's kind."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from moesaic.config.data import DataConfig
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.sources import Source
from moesaic.data.special import DEEPSEEK_TOKENS, SpecialTokens
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

_DIGIT = r"\p{N}"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: SpecialTokens = DEEPSEEK_TOKENS
) -> Tokenizer:
    """A tokenizer learned from texts; the same texts in the same order give the same tokenizer.

    Merges never join letters, digits, punctuation, line breaks and Chinese or Japanese characters,
    and every digit is a token of its own.

    Args:
        texts: what to learn the merges from.
        vocab_size: tokens in all: special tokens, the 256 bytes, and merges. Texts with few
            distinct words may give fewer.
        special_tokens: get the first ids, in their order.

    Raises:
        DataError: if the vocabulary has no room for the bytes and the special tokens.

    Source: DeepSeek LLM (arXiv 2401.02954) section 2.1 for the rules; the patterns for words and
        characters are those published with DeepSeek-V3.
    """
    needed = 256 + len(special_tokens.all)
    if vocab_size < needed:
        raise DataError(
            f"vocab_size={vocab_size} has no room for 256 bytes and {len(special_tokens.all)} "
            f"special tokens; raise it to {needed} or more"
        )
    engine = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens.all),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return _finished(engine, special_tokens)


def train_on_sources(
    config: DataConfig, vocab_size: int, most_characters: int = 20_000_000
) -> Tokenizer:
    """A tokenizer learned from what a run reads, and with its chat template.

    Args:
        config: the sources; each gives its weight's share of the characters, or all it has.
        vocab_size: tokens in all; see `train_bpe`.
        most_characters: where to stop; more text hardly changes the merges.

    Raises:
        DataError: if the sources cannot be read, or the vocabulary is too small.
    """
    tokenizer = train_bpe(_texts(config, most_characters), vocab_size)
    if config.chat_template is None:
        return tokenizer
    return replace(
        tokenizer,
        settings={**tokenizer.settings, "chat_template": TEMPLATES[config.chat_template]},
    )


def _texts(config: DataConfig, most_characters: int) -> Iterator[str]:
    """Documents of every source, from its beginning, up to its share of the characters."""
    weights = sum(source.weight for source in config.sources)
    for source in config.sources:
        left = most_characters * source.weight / weights
        for document, _ in Source(source, config.held_out_share).read():
            if left <= 0:
                break
            yield document.spoken
            left -= len(document.spoken)


def _untrained() -> Engine:
    """Byte-level BPE without merges, and the rules by which text is cut before merging."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_DIGIT), "isolated"),
            pre_tokenizers.Split(Regex(_CJK), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


def _finished(engine: Engine, special: SpecialTokens) -> Tokenizer:
    """The trained engine with its settings, set up so that any reader puts BOS first."""
    ids = engine.get_vocab()
    engine.post_processor = processors.TemplateProcessing(
        single=f"{special.bos} $A",
        pair=f"{special.bos} $A {special.bos}:1 $B:1",
        special_tokens=[(special.bos, ids[special.bos])],
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special.bos,
        "eos_token": special.eos,
        "pad_token": special.pad,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(
        engine.to_str(), settings, ids[special.bos], (ids[special.eos],), ids[special.pad]
    )
