"""Networks that rewards share: CLIP, BLIP, Flan-T5, and what pictures go through before them."""
