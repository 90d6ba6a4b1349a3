"""A word-level tokenizer over the words of the shapes world, in the files that transformers and diffusers load."""

import argparse

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import data

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY_SIZE = 192


def build():
    """The tokenizer: lower case, split at blanks and punctuation, one id per known word, end mark last."""
    words = [PAD, END, UNKNOWN, *data.all_words()]
    words += [f"<extra_id_{i}>" for i in range(VOCABULARY_SIZE - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
                                   model_max_length=512, padding_side="right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="directory to write")
    build().save_pretrained(parser.parse_args().out)
