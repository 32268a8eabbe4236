"""From logits to token ids. From bottom to top: penalties, logprobs; sampler."""
