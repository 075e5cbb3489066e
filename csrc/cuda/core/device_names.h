// What device functions call, declared for the host's compiler: it reads the headers that such functions share with
// the arguments of kernels, and compiles none of them. nvcc has these names itself. For platform.h alone.
#pragma once

#include <device_launch_parameters.h> // threadIdx and the like

#include <cstdint>

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32);
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32);
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32);
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32);
unsigned __ballot_sync(unsigned mask, int condition);
void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
void __threadfence();
unsigned atomicAdd(unsigned* counter, unsigned by);
template <typename T>
T __ldg(const T* address);

unsigned __umulhi(unsigned a, unsigned b);
unsigned __float_as_uint(float x);
float __uint_as_float(unsigned bits);
float __fadd_rn(float a, float b);
float __fmul_rn(float a, float b);
float __fdiv_rn(float a, float b);
float __fsqrt_rn(float x);
float __fmaf_rn(float a, float b, float c);
double __dadd_rn(double a, double b);
double __dmul_rn(double a, double b);
double __ddiv_rn(double a, double b);
double __dsqrt_rn(double x);
double __fma_rn(double a, double b, double c);
inline int min(int a, int b) {
  return b < a ? b : a;
}
inline int max(int a, int b) {
  return a < b ? b : a;
}
float rsqrtf(float x);
double rsqrt(double x);
