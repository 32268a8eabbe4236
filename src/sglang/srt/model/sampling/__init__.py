"""From logits to token ids. From bottom to top: uniform, penalties, logprobs; batch; sampler."""
