"""Code shared by the language, the runtime and the commands. It imports none of them."""
