"""What the language, the runtime and the commands share. It imports none of them."""
