"""Tiny random models of other architectures, in memory."""

from anchorlwf.bench.zoo.architectures import ARCHITECTURES, build
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import LanguageModel


def zoo_model(name: str) -> LanguageModel:
    net, tokenizer = build(ARCHITECTURES[name])
    return LanguageModel(net.eval(), Codec(tokenizer), name)
