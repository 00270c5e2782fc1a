"""Tokenizers for synthetic weights, without a file: FLUX.1-dev's kinds and vocabulary sizes, other words.

The published vocabularies cannot be fetched where synthetic weights are used, and random encoders know no
word anyway. What must be true for speed is: strings are really tokenized, by byte-pair merges (CLIP) and a
unigram model (T5) over as many entries as the published ones, and padded to the published lengths. Pieces
here are runs of letters in alphabetical order, so a word falls into chunks of two to four letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, product
from string import ascii_lowercase, printable
from typing import Any

CLIP_VOCABULARY = 49_408
CLIP_TOKENS = 77
T5_PIECES = 32_000
"""SentencePiece entries; 100 sentinels follow, and the embedding table is padded to 32128."""
T5_TOKENS = 512

_WORD_END = "</w>"


def _clip_merges() -> Iterator[tuple[str, str]]:
    """Pairs, then triples, then quadruples of letters; both inside a word and at its end."""
    ends = ("", _WORD_END)
    pairs = [a + b for a, b in product(ascii_lowercase, repeat=2)]
    yield from ((a, b + end) for end in ends for a, b in product(ascii_lowercase, repeat=2))
    yield from ((pair, c + end) for end in ends for pair, c in product(pairs, ascii_lowercase))
    yield from ((first, second + _WORD_END) for first, second in product(pairs, repeat=2))


def clip_tokenizer() -> Any:
    """A CLIPTokenizer: 256 bytes, the same at a word's end, merges, and two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    singles = [*alphabet, *(character + _WORD_END for character in alphabet)]
    merges = list(islice(_clip_merges(), CLIP_VOCABULARY - len(singles) - len(specials)))
    tokens = [*singles, *(left + right for left, right in merges), *specials]
    vocab = {token: number for number, token in enumerate(tokens)}
    # The annotation says strings; the BPE model behind it takes pairs.
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)  # type: ignore[arg-type]


def _t5_pieces() -> Iterator[tuple[str, float]]:
    """Pieces with their log-probability: one less a letter, so that the longest piece that fits wins."""
    yield from (("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -10.0))
    visible = [character for character in printable if not character.isspace()]
    runs = ("".join(letters) for n in (2, 3, 4) for letters in product(ascii_lowercase, repeat=n))
    for run in chain(visible, runs):
        yield f"▁{run}", -9.0 - len(run)
        yield run, -9.0 - len(run)


def t5_tokenizer() -> Any:
    """A T5 tokenizer whose every printable ASCII character is a piece."""
    from transformers import T5Tokenizer

    pieces = list(islice(_t5_pieces(), T5_PIECES))
    return T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=T5_TOKENS)
