"""The releases of librkllmrt.so that rkfleet knows, by version and by content.

Used by `identify.py`. A content id is the object id that git gives the file: SHA-1 over `blob <size>`, NUL and the bytes. Those below are
the ids that the release tags' trees have for `librkllmrt.so`; a file that was stripped or packed anew has another one and is told apart by
its symbols instead.

Source: trees of the release tags of https://github.com/airockchip/rknn-llm, `rkllm-runtime/(runtime/)Linux/librkllm_api/{aarch64,armhf}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

__all__ = ["CONTENTS", "GENERATIONS", "OLDER", "VERSIONS", "Generation"]

Generation: TypeAlias = Literal["G1", "G2", "G3", "G4"]

GENERATIONS: Final[tuple[Generation, ...]] = ("G1", "G2", "G3", "G4")

VERSIONS: Final[Mapping[str, Generation]] = {
    "1.1.0": "G1",
    "1.1.1": "G1",
    "1.1.2": "G1",
    "1.1.3": "G1",
    "1.1.4": "G1",
    "1.2.0": "G2",
    "1.2.1b1": "G2",
    "1.2.1": "G3",
    "1.2.2": "G3",
    "1.2.3": "G3",
    "1.3.0": "G4",
}

# Releases before the first generation; their interface is another one altogether and is not spoken here.
OLDER: Final = frozenset({"1.0.0", "1.0.1", "1.0.2"})

CONTENTS: Final[Mapping[str, str]] = {
    # aarch64
    "53e00993ebbc7797df09673f806479e8642db946": "1.0.0",
    "a026cbe60905af0ad6c07dfa2fcc339dd4b9fa10": "1.0.1",
    "c913ab1569dfed48916c05fcd898f8d3f9dafe04": "1.0.2",
    "66dfdc7c25cdca9ccf9930798118e17abf7592ff": "1.1.0",
    "bfca051375287d0f5aa754a7b8681b4ede52e259": "1.1.1",
    "e8f4afc38c7394beeff83003dbc772412f649a44": "1.1.2",
    "68e79327e82f675413956be615f48c62ccd0f16e": "1.1.3",
    "3bb8cb6172c4c06e1c622c8f8c579888378784f4": "1.1.4",
    "d45ee9b8dcb9ef27d7dd875ce3be3d5e6dfb654d": "1.2.0",
    "db041c01bba5e0e8f624bb2ff50d48825dde1bfc": "1.2.1b1",
    "6b9439d59f2fe4bb8ef5ee2b09c102f1bf993da9": "1.2.1",
    "8ed9cca16f8d5ad8f7cdd7d393de6561182b3395": "1.2.2",
    "0084abc34ab43359cfa9fd5d4c92ece34127dbd0": "1.2.3",
    "34167b32f99cb7ab19e21fb579fb750d96b878f1": "1.3.0",
    # armhf
    "7025f35825e04ad75d839d10392e3c02cc88e57a": "1.2.1",
    "d5953fdad6e60521f1dc696f6d638425c93ba08d": "1.2.2",
    "fe1ca6849603a770c54f82d26b826a120c79a01a": "1.2.3",
    "17c9063b46168c4e7d093d6fedb097874f92d076": "1.3.0",
}
