#include "../check.hpp"

bool other_is_right();  // in other.cpp, which includes the same headers

int main() {
  return attention_is_right(attzoo::MultiHeadSelfAttention(16, 4)) && other_is_right() ? 0 : 1;
}
