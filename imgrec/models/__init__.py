"""Networks: plain `nn.Module`s, float [B, channels, H, W] in, logits [B, num_classes] out; one file per family."""
