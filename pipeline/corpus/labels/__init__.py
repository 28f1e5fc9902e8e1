"""What a label means, which says which response is better: stated, proven or of a published layout, else refused."""
