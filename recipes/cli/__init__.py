"""The commands: of `nemo experiment`, where hook.py adds them, and of `modelopt-recipes`, which is program.py."""
