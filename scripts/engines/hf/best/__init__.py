"""The smallest mixture of formats that passes: formats are halved, then mixed, and the winner is quantized."""
