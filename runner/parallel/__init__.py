"""The processes of one run. Rank 0 leads: it follows the plan as if it were alone, writes and speaks. The others serve.

    cfg        the two branches of guidance on two of them
    launcher   torchrun, for ranks that end with their desk and fail in few words

How they meet and exchange messages is hardware.mesh. Models, stages and schemes know nothing of it:
what is parallel is put around them from outside. Imports no torch.
"""
