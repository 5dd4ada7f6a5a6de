"""What a training run would do, checked and told without weights and without a network.

    python -m training.dry_run --config training/configs/paper.yaml \\
        --accelerate training/configs/accelerate/fsdp.yaml --processes 6 --card-gb 80

Checks that settings, pool and data read, that rows have the columns of their module's reward, that
right beats wrong beats invalid, that batches come out and that no right completion is cut off;
estimates memory (`memory.py`), split as the accelerate file says (`launch.py`); prints the
commands, servers first. What is wrong ends it with an error, what is not there yet is listed.
Prompts of the allocator are made of the plans that the data has, where a real run has those of the
router.
"""
