"""The peer of `heed bench model --peers transformers`: reads a context and decodes greedily with Hugging Face transformers
each time it is asked to, and answers with the times. Started by the command itself:

    python transformers_peer.py MODEL THREADS     MODEL: a folder or a .gguf file

It says {"version": ...} when the model is loaded or {"error": ...}; then, for every line {"tokens": [...], "steps": N} on stdin, one
line {"prefill": ms, "decode": [ms, ...]}. It ends with its stdin."""

import json
import os
import pathlib
import signal
import sys
import time


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's: it closes stdin
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for stream in (1, 2):  # what libraries say is of no use here
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    say = lambda answer: print(json.dumps(answer), file=answers)
    model = pathlib.Path(sys.argv[1])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import torch
        import transformers
        torch.set_num_threads(int(sys.argv[2]))
        where = (model, {}) if model.is_dir() else (model.parent, {"gguf_file": model.name})
        net = transformers.AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
    except Exception as error:  # any of it is the reason why there is no figure
        say({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
        return
    say({"version": f"{transformers.__version__} with PyTorch {torch.__version__}"})

    def timed(ids, cache):
        start = time.perf_counter()
        out = net(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out, (time.perf_counter() - start) * 1e3

    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            out, prefill = timed(torch.tensor([asked["tokens"]]), None)
            decode = []
            for _ in range(asked["steps"]):
                out, ms = timed(out.logits[:, -1:].argmax(-1), out.past_key_values)
                decode.append(ms)
            say({"prefill": prefill, "decode": decode})


main()
