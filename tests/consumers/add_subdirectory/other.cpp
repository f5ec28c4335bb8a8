#include "../check.hpp"

bool other_is_right() {
  return attention_is_right(
      attzoo::MultiHeadSelfAttention({.d_model = 16, .num_heads = 4, .bias = true}));
}
