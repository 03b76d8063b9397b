"""Whatever MODEL, CLIP and VAE ComfyUI has loaded, as one of the engine's families.

ops            weights stay as ComfyUI keeps them; autograd keeps none; the adapter beside each layer
sampling       ComfyUI's schedules as steps of the engine's chain
guidance       how a model wants to be sampled
prompts        prompts encoded by ComfyUI's CLIP
decode         pixels by ComfyUI's VAE, with a gradient
checkpointing  activations recomputed, for any network
chunks         video decoded and gone back through a few frames at a time
kernels        fused kernels and attention backends that have no gradient, replaced for the run
lora_names     which layers are adapted, and what they are called in files
refusals       what cannot be trained, in one sentence each
signature      which weights and patches these are
model          all of it together: `NativeModel`
"""
