"""Ours against theirs: pairs that alternate in one run. `python -m benchmarks` prints all ratios; see `NOTES.md` too.

One file a group of benchmarks (`mae_step`, `finetune_step`, `optimiser`, `pipeline`, `embedding`, `onnx_program`,
`imports`), each with a table `BENCHMARKS` of name -> Benchmark; `pairs` is what they share.
"""
