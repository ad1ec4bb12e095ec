"""What a user writes, as the text encoders read it: weights, chunks, token ids, textual inversions."""
