// How products of float32 numbers are computed.
#pragma once

namespace oes::cuda::conv {

enum class Products {
  kFloat32, // exactly, by multiply-adds
  kTf32, // on tensor cores, of factors rounded to TF32
  kTf32x3, // on tensor cores, three products of TF32 numbers for each: nearly float32
};

inline const char* name_of(Products products) {
  return products == Products::kFloat32 ? "multiply-adds" : products == Products::kTf32 ? "TF32" : "3 x TF32";
}

constexpr int kMmaTaps = 8; // on tensor cores a sum over taps takes so many at a time

} // namespace oes::cuda::conv
