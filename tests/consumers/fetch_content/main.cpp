#include "../check.hpp"

int main() { return attention_is_right(attzoo::MultiHeadSelfAttention(16, 4)) ? 0 : 1; }
