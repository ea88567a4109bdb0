"""The switch: which side may change data, moved in one step, forth and back."""
