"""Images to what each family's encoder wants. `base` says what a processor is, `registry` which model has which."""
