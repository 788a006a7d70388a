"""tokenizer_equality.py as a test: ten thousand strings for each tokenizer."""
import os
import pathlib
import subprocess
import sys


def test_ids_and_texts_equal_those_of_tokenizers():
    script = pathlib.Path(__file__).with_name("tokenizer_equality.py")
    subprocess.run([sys.executable, script, "--heed", os.environ["HEED"]], check=True)
