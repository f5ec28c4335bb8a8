// A user's file that instantiates most of the library: .ci/run compiles it with every warning on.

#include <attzoo/attzoo.hpp>

torch::Tensor functional(const torch::Tensor& t, const torch::Tensor& ids) {
  const auto doc = attzoo::table(ids), bias = attzoo::table(t);
  const auto mask = attzoo::mask_mod(
      [=](auto b, auto, auto q, auto kv) { return doc(b, q) == doc(b, kv) && (q - kv) % 3 == 0; });
  const auto assigned = attzoo::mask_mod([=](auto b, auto, auto q, auto kv) {
    auto d = q - kv;
    d *= 2;
    d <<= 1;
    auto e = doc(b, q);
    e -= d;
    auto x = 0.5 * kv;
    x += q;
    auto ok = ~(x > 3);
    ok |= e == ~d;
    return ok;
  });
  const auto score = attzoo::score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    s += bias(h, q);
    return tanh(s / 2) + bias(h, q - kv + 9) - 0.1 * min(abs(q - kv), 8) + where(q > kv, s, 0) +
           pow(s, 2) / (1 + exp(-s)) + clamp(floor(s), -1, kv) + sin(q / 2.0) * relu(s);
  });
  const auto named = attzoo::alibi(t[0]) + attzoo::softcap(30) + attzoo::relative_bias(t) +
                     attzoo::bias_tensor(t) + attzoo::sink(t[0]);
  return attzoo::attention(t, t, t, mask || attzoo::causal(), score + named).output +
         attzoo::attention(t, t, t,
                           attzoo::block_mask((~mask & attzoo::blocks(3)) | assigned, 9, 9))
             .output +
         attzoo::scaled_dot_product_attention(t, t, t, {.mask = ids}).output;
}

torch::Tensor modules(const torch::Tensor& x) {
  attzoo::LSHSelfAttention lsh(64, 4);
  attzoo::LongformerSelfAttention longformer(64, 4);
  attzoo::BlockSelfAttention block({.d_model = 64, .overlap = true});
  auto stack = attzoo::transformer_block(attzoo::gated(attzoo::combined(lsh, longformer)));
  attzoo::save_state_dict(*stack, "stack.safetensors");
  attzoo::load_state_dict(*stack, "stack.safetensors");
  return stack(x, {.causal = true}).output + block(x).output +
         attzoo::LinearSelfAttention(64)(x, {.documents = {.offsets = x}}).weights.head_mean() +
         attzoo::DilatedSelfAttention(64)(x).output + attzoo::ALiBiSelfAttention(64, 4)(x).output;
}
