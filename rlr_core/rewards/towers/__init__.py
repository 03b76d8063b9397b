"""Networks that rewards share: CLIP, BLIP, what pictures go through before them."""
