#pragma once
/// \file
/// What a CUDA kernel gets as its arguments, once for the host and, as text, for the kernel.

namespace attzoo::core::cuda {

#define ATTZOO_HOST_AND_KERNEL(name, ...) \
  __VA_ARGS__                             \
  inline constexpr char name[] = #__VA_ARGS__;

// Number: one that a callable captured or has as a literal.
// Table: a tensor of rank 1 to 4 that a modifier reads, sizes and strides in entries. Where it
// learns: its gradient's place in Problem::learning, strides there, and the numbers from one copy
// to the next.
ATTZOO_HOST_AND_KERNEL(
    kModifierStructs,
    struct Number {
      long long integer;
      double real;
    };
    struct Table {
      const void* data;
      long long stride[4];
      int size[4];
      long long gradient;
      long long gradient_stride[4];
      long long slot;
    };)

// View: a tensor [B, H, N, features] whose last dimension is contiguous, strides in numbers.
// Schedule: which columns (keys, or queries where rows are keys) the rows of a block reach. An
// entry of four numbers is the first row, its segments' first and end, and which part of the keys
// it is; a segment of three is the first tile of columns, the end, and whether pairs must be asked.
// There are `count` entries for each batch and head, or for all, as by_batch and by_head (steps)
// say. Problem: `lse`, `delta` and, unless null, `shift`, `log_sum` (what a row's softmax is known
// by, in powers of two) and `grad_lse` are [B, H, L], `part_*` [parts, B, H, L(, E)]. Rows and
// columns that meet lie `step` apart. `keep` is 1 / (1 - dropout); `rows_apart`: a block adds to
// `learning` what all heads have of its queries.
ATTZOO_HOST_AND_KERNEL(
    kProblemStructs,
    struct View {
      void* data;
      long long b;
      long long h;
      long long n;
    };
    struct Schedule {
      const int* entries;
      const int* segments;
      int count;
      int by_batch;
      int by_head;
    };
    struct Problem {
      View q;
      View k;
      View v;
      View output;
      View grad_output;
      View grad_q;
      View grad_k;
      View grad_v;
      Schedule schedule;
      float* lse;
      float* shift;
      float* log_sum;
      const float* delta;
      const float* grad_lse;
      float* part_output;
      float* part_max;
      float* part_sum;
      double* learning;
      int rows_apart;
      int parts;
      int B;
      int H;
      int group;
      int L;
      int S;
      int D;
      int E;
      int step;
      float scale;
      float keep;
      unsigned long long seed;
      unsigned long long threshold;
    };)

}  // namespace attzoo::core::cuda
