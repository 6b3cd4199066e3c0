"""What a stage of DreamLLM needs, before anything is downloaded or trained.

stock_configs.py   where the stock configuration of a part is: a folder, shipped beside the recipes, the hub
shapes.py          the configurations of all parts -> a model, whose tensors may be fake
workload.py        documents -> rows, positions and pictures of a step
trace.py           one real forward and backward pass over fake tensors: bytes at their peak, FLOPs
memory.py          the parts of that peak; what is divided among GPUs
plan.py            all of it, and what to change where it does not fit
"""
