// Any bytes as a safetensors file: it loads, or it is a c10::Error. What loads holds all bytes of
// the file, is the same mapped or read, and comes back when it is saved.
//
// Without attzoo::compiled: the header's parser, which no header declares, gets the very bytes that
// AddressSanitizer watches; a mapped file ends with its page.

#include <attzoo/io/checkpoint.hpp>

#include <cstring>
#include <map>

#include "fuzz.hpp"

namespace attzoo::fuzz {
namespace {

using Tensors = std::map<std::string, torch::Tensor>;

bool same(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.is_contiguous() &&
         b.is_contiguous() &&
         (a.numel() == 0 || std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
}

bool same(const SafeTensors& a, const SafeTensors& b) {
  if (a.metadata != b.metadata || a.tensors.size() != b.tensors.size()) return false;
  for (const auto& [name, tensor] : a.tensors) {
    const auto other = b.tensors.find(name);
    if (other == b.tensors.end() || !same(tensor, other->second)) return false;
  }
  return true;
}

void check(std::string_view bytes) {
  static const Folder folder;
  const auto path = folder.write("any.safetensors", bytes);
  core::SafeTensorsHeader header;
  const bool parses = works([&] { header = core::parse_safetensors_header(bytes, "any"); });
  SafeTensors read, mapped;
  const bool loads = works([&] { read = load_safetensors(path); });
  require(works([&] { mapped = open_checkpoint(path); }) == loads,
          "a file loads mapped or read, not both");
  require(parses || !loads, "a file loads whose header does not");
  if (!loads) return;
  require(same(read, mapped), "a file holds one thing mapped and another one read");
  require(header.entries.size() == read.tensors.size(), "tensors get lost");
  uint64_t end = header.data_begin;
  for (const auto& e : header.entries) {
    const auto& t = read.tensors.at(e.name);
    if (kPlanted && e.name.size() == 2) require(bytes[bytes.size()] == 1, "beyond the end");
    require(t.numel() == 0 || std::memcmp(t.data_ptr(), &bytes[end], t.nbytes()) == 0,
            "a tensor has other bytes than the file");
    end += t.nbytes();
  }
  require(end == bytes.size(), "there are bytes of no tensor");
  save_safetensors(folder / "again.safetensors", read.tensors, read.metadata);
  require(same(load_safetensors(folder / "again.safetensors"), read), "it does not come back");
}

}  // namespace
}  // namespace attzoo::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attzoo::fuzz::check(attzoo::fuzz::text_of(data, size));
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

/// Mostly, the header's length is that of what was mutated, up to the last brace.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  const auto brace = attzoo::fuzz::text_of(data, size).rfind('}');
  if (seed % 8 != 0 && brace != std::string_view::npos && brace >= 8) {
    const uint64_t length = brace - 7;
    std::memcpy(data, &length, sizeof length);
  }
  return size;
}
