"""How do words become token ids?

Published folders hold Llama's tokenizer as `tokenizer.json`. A small policy has no use for 32,000 pieces: its tokenizer
knows the words of LIBERO, one token each, in the same structure as Llama's, so that nothing else in the package has to
know the difference:

* 0 `<unk>`, 1 `<s>` (BOS, always first), 2 `</s>` (stop); words start with "▁", and "▁" alone is the lone space;
* the last 256 ids are action bins, followed by `<PAD>`, and the embedding table is 64 rows longer than that id.

Everything is lower case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LONE_SPACE = "▁"
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
PUNCTUATION = (":", "?", ".", ",", "\n")
# Every word of the five LIBERO suites and of their published perturbations.
_LIBERO_TEXT = """
    a akita alphabet and at back basket bbq beside between black book both bottle bottom bowl box butter by
    cabinet caddy center cheese chocolate close compartment cookie cookies cream cup door drawer dressing from
    front frying grab in inside into involves it juice ketchup layer left lift meal microwave middle milk mixing
    moka move mug next not object of off on open orange organizing pan pick place plate popco pot pots prepare
    preparing pudding push put quick rack ramekin red right s salad sauce set shelf slide snack soup stack stove
    study switch table tablescene take task the them to tomato top trans tray turn under up using white wine
    wooden yellow
"""
LIBERO_WORDS = tuple(_LIBERO_TEXT.split())
PROMPT_WORDS = ("in", "what", "action", "should", "the", "robot", "take", "to")


@dataclass(frozen=True)
class SmallVocabulary:
    """Where the special ids of a small tokenizer are, as the network's configuration needs them.

    Attributes:
        bin_vocab_size: the 256 ids below are action bins; it is also the id of `<PAD>`.
        lone_space: id of "▁".
        padding: rows of the embedding table above `bin_vocab_size`.
    """

    bin_vocab_size: int
    lone_space: int
    padding: int = 64

    @property
    def table_size(self) -> int:
        """Rows of the embedding table."""
        return self.bin_vocab_size + self.padding


def format_prompt(instruction: str) -> str:
    """The published prompt around an instruction, which is lower-cased."""
    return PROMPT.format(instruction=instruction.lower())


def word_tokenizer(
    words: Sequence[str] = LIBERO_WORDS, bins: int = 256
) -> tuple[PreTrainedTokenizerFast, SmallVocabulary]:
    """Build a tokenizer with one token for each word.

    Args:
        words: lower-case words; those of the prompt are added. Other words become `<unk>`.
        bins: action bins at the end of the vocabulary.

    Returns:
        The tokenizer, and where its special ids are.
    """
    spelled = [f"{LONE_SPACE}{word}" for word in dict.fromkeys([*PROMPT_WORDS, *words])]
    tokens = ["<unk>", "<s>", "</s>", LONE_SPACE, *PUNCTUATION, "out", *spelled]
    used = len(tokens) + bins
    bin_vocab_size = -(-used // 64) * 64
    tokens += [f"<unused_{i}>" for i in range(bin_vocab_size - used)]
    tokens += [f"<bin_{i}>" for i in range(bins)] + ["<PAD>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    # Spaces are marked at the start of each word, as in Llama, but a line break starts a piece of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(LONE_SPACE, prepend_scheme="first"),
            pre_tokenizers.Split(Regex(r"[:?.,\n]"), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<PAD>",
        padding_side="right",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    return fast, SmallVocabulary(bin_vocab_size, vocabulary[LONE_SPACE])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """Read `tokenizer.json` as it is; None if the folder has no tokenizer.

    Raises:
        FileNotFoundError: if there is only a SentencePiece model.
        ValueError: if the file is truncated or damaged.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        if (folder / "tokenizer.model").exists():
            raise FileNotFoundError(f"{folder} has tokenizer.model but no tokenizer.json; only the latter can be read")
        return None
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), padding_side="right")
    except Exception as problem:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{file} is truncated or damaged: {problem}") from problem
