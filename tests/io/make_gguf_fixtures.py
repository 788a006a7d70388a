"""Makes fixtures/quantised.gguf, one tensor of every type that Heed reads, and
fixtures/dequantised.safetensors, what the `gguf` package makes of them in float32.

Needs numpy, gguf and safetensors:  python tests/io/make_gguf_fixtures.py
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "fixtures"
ROWS, COLUMNS = 3, 512
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
# Byte positions of the half-precision scales in one block of the types that are filled at random.
SCALES = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def stored(name, rng):
    """Bytes of a [ROWS, COLUMNS] tensor: quantised normal numbers, or random blocks."""
    kind = Type[name]
    if name not in SCALES:
        values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * 0.1
        return gguf.quants.quantize(values, kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        scales[0] = np.float16(5.96e-8)  # a subnormal
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def main():
    rng = np.random.default_rng(20240607)
    FOLDER.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(FOLDER / "quantised.gguf", "llama")
    writer.add_uint8("test.uint8", 200)
    writer.add_int8("test.int8", -100)
    writer.add_uint16("test.uint16", 60000)
    writer.add_int16("test.int16", -30000)
    writer.add_uint32("test.uint32", 4000000000)
    writer.add_int32("test.int32", -2000000000)
    writer.add_uint64("test.uint64", 2**63 + 1)
    writer.add_int64("test.int64", -(2**62))
    writer.add_float32("test.float32", 0.1)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "naïve ☃")
    writer.add_array("test.strings", ["a", "", "snow ☃"])
    writer.add_array("test.integers", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -1.25])
    expected = {}
    for name in TYPES:
        kind = Type[name]
        data = stored(name, rng)
        writer.add_tensor("weight." + name, data, raw_dtype=kind)
        raw = data.view(np.uint8) if name not in ("F32", "F16") else data
        expected["weight." + name] = gguf.quants.dequantize(raw, kind).reshape(ROWS, COLUMNS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, FOLDER / "dequantised.safetensors", {"made by": "make_gguf_fixtures.py"})


if __name__ == "__main__":
    main()
