"""How the built-in model, reward and judge were made: `python -m rlr_core.demo.build`."""
